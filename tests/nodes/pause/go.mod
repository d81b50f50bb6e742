module akocore.test/pause

go 1.25
